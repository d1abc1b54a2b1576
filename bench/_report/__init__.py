"""Reports as a single HTML file without scripts or assets; plots are inline SVG."""
