"""The command line: `app.py` lists the commands, each file holds those around one thing."""
