"""What the stock client packages are made to do; runs in an environment of their own."""
