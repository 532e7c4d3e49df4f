"""What is told about each request."""
