"""The resources people write: Model and CatalogEntry, and how a source is named."""
