"""The REST API: thin views over the doors in repos.registration and repos.clusters."""
