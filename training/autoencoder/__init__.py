"""Autoencoders of latent models: trained, fine-tuned on noisy latents, read and written as diffusers folders."""
