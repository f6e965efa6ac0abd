"""What every hook and every writer has to do right, whatever it is for; hooks and writers find their way in by themselves."""
