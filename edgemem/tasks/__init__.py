"""Tasks that judge a model by streaming it: loaders, metrics, shipped checkpoints and excerpts."""
