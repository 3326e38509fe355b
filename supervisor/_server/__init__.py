"""The embedded server: owns every line from ``accept()`` on, and tells the supervisor what to own."""
