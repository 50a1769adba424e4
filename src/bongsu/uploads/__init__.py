"""The upload lifecycle: bytes in, a row that tells the truth, a background job that finishes."""
