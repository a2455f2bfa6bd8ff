# Read by bash (BASH_ENV) before the image's own script: the cluster's id is drawn once and kept with the data. An id that
# is always the same would pass an empty Kafka off as the one whose offsets the services remember.
id=/var/lib/kafka/data/cluster-id
[ -s "$id" ] || head -c 16 /dev/urandom | base64 | tr '+/' 'Aa' | tr -d '=\n' >"$id"
CLUSTER_ID=$(cat "$id")
export CLUSTER_ID
