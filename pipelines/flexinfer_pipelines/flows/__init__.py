"""The build as a Prefect flow. The only place that knows Prefect, and imported only when a run is wanted."""
