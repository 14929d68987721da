"""Does it help? Every arm on every data set, by one protocol; see README.md beside this file."""
