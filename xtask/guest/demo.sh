# The demo: its processes, its kills, its drain. On a file system, its transfers read from there.
place_up
must within 100 pgmap demo --seconds 4 --scratch $DIR
