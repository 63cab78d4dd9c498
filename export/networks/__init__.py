"""Networks beside the flow as graphs: text encoder and autoencoder."""
