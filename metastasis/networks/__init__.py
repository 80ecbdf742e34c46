"""DeepMedic and two U-Nets, their sizes, losses and optimizer."""
