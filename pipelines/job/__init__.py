"""The stages as one job: in order, evaluated and refitted, with what is kept from a release, up to publishing."""
