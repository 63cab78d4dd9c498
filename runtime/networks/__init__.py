"""Networks beside the flow: text encoder, autoencoder and denoisers."""
