"""What every exported graph is made with: a builder, weight files, traced networks."""
