"""The server under load: what it costs, how fast it is when idle, what it does when it is too much, what it keeps."""
