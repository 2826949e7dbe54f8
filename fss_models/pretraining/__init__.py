"""Class-agnostic pretraining of SAM 2's neck, prompt encoder, memory and decoder above a frozen trunk."""
