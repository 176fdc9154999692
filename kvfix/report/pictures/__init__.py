"""Pictures of a report: predictions drawn on images, and how pictures get into a page."""
