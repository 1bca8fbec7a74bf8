"""How the admin pages write times: see FORMAT_MODULE_PATH in the settings."""
