"""The contents of the dashboards, one file each. After a change, run `python deploy/grafana/build.py`."""
