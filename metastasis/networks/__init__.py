"""DeepMedic and a U-Net, their sizes, losses and optimizer."""
