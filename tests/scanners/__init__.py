"""Other people's scanners, run by script/scan against the service as deployed."""
