"""Does it help? Every arm on every data set, by one protocol; see docs/evidence/protocol.md."""
