"""What the wire fixes, as plain objects: no socket, no clock, no event loop."""
