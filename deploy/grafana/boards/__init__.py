"""What is on the dashboards, one file each. After a change: `python deploy/grafana/build.py`."""
