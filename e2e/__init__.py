"""The lab in network namespaces, and the end-to-end suite that runs in it or on real machines."""
