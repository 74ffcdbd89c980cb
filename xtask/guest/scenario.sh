# One scenario: `SCRIPT/PLACE`. Sets the place up, runs the script, takes the place down again.
# A script ends by itself for success, or with `die REASON` or `skip REASON`.
NAME=$1
SCRIPT=${NAME%%/*}
PLACE=${NAME#*/}
. /guest/lib.sh
. /guest/places.sh
trap place_down EXIT
. "/guest/$SCRIPT.sh"
exit 0
