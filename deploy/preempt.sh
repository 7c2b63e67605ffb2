#!/bin/sh
# preempt.sh NODE: waits for a cloud's notice that it takes this machine away, and then drains the node.
#
# Knows Amazon's spot notices (two minutes ahead) and Google's preemptions (thirty seconds). METADATA moves the metadata server,
# PREEMPT_DEADLINE what running answers get before others go on with them; either way no query is lost.
set -eu
node=${1:?usage: preempt.sh NODE}
metadata=${METADATA:-http://169.254.169.254}
deadline=${PREEMPT_DEADLINE:-20s}
every=${PREEMPT_EVERY:-2}

amazon() {
  token=$(curl -sf -m 2 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$metadata/latest/api/token") || return 1
  # 404 as long as there is no notice.
  curl -sf -m 2 -o /dev/null -H "X-aws-ec2-metadata-token: $token" "$metadata/latest/meta-data/spot/instance-action"
}

google() {
  [ "$(curl -sf -m 2 -H 'Metadata-Flavor: Google' "$metadata/computeMetadata/v1/instance/preempted")" = TRUE ]
}

until amazon || google; do
  sleep "$every"
done
echo "this machine is taken away: draining $node" >&2
exec "${BANYAN:-/usr/local/bin/banyan}" node drain "$node" --deadline "$deadline"
