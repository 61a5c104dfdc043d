"""The applications that people bring themselves, next to the deployment's."""
