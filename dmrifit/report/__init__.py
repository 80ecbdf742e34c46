"""Pages, figures and viewers of images; nothing here knows a study."""
