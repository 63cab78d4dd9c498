"""A first recipe for a folder of images: what is in it, what this machine can train in the time, and why."""
