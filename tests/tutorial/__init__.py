"""The hook tutorial, sentence by sentence, and the numbers of the behaviour that its readers expect."""
