"""The study: many runs of the main job, compared as a reviewer would ask."""
