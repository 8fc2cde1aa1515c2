"""The study documents that ship with EchoFed."""
