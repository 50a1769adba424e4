"""The machinery around servers: how this project starts, watches and ends the programs it depends on."""
