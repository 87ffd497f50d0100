"""Search spaces: encodings in numpy, networks in torch, built on demand."""
