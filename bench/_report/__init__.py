"""Reports as one HTML file: no script, no assets, drawings as inline SVG."""
