"""Tables of devices and models as JSON, read by device_tables.py."""
