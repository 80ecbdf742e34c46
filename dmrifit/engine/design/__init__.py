"""What a protocol can tell of a model before a scan is made."""
