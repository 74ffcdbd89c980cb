# The parts of sysfs and proc that `pgmap list --devices` reads, as text: `F PATH CONTENT` for an attribute,
# `L PATH TARGET` for a link, `D PATH` for a directory. The tests of pgmap-os build such trees again.
# With a device-dax namespace on the first NVDIMM, ext4 with dax on the second and one huge page.
echo 1 > /proc/sys/vm/nr_hugepages
PLACE=devdax-2M place_up
PLACE=ext4-dax place_up
attributes() {
    for file in "$@"; do
        [ -f "$file" ] && [ -r "$file" ] || continue
        value=$(cat "$file" 2>/dev/null | tr '\n' ' ')
        echo "F ${file#/} ${value% }"
    done
}
links() { for link in "$@"; do [ -L "$link" ] && echo "L ${link#/} $(readlink "$link")"; done; }
{
    for bus in dax nd cxl; do
        for device in /sys/bus/$bus/devices/*; do
            [ -L "$device" ] || continue
            case ${device##*/} in decoder* | endpoint* | port* | root* | nmem* | ndbus*) continue ;; esac
            links "$device"
            real=$(readlink -f "$device")
            echo "D ${real#/}"
            for name in size align numa_node target_node dev available_size persistence_domain badblocks \
                holder mode ram/size pmem/size serial interleave_ways interleave_granularity target0; do
                attributes "$real/$name"
            done
            links "$real/driver"
            for block in "$real"/block/*; do [ -d "$block" ] && echo "D ${block#/}"; done
        done
    done
    for size in /sys/kernel/mm/hugepages/* /sys/devices/system/node/node*/hugepages/*; do
        attributes "$size/nr_hugepages" "$size/free_hugepages" "$size/resv_hugepages" \
            "$size/nr_overcommit_hugepages"
    done
    sed 's/^/M /' /proc/self/mountinfo
} > /tmp/record
while read -r line; do note "record $line"; done < /tmp/record
