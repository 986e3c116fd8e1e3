#!/bin/sh
# A private containerd as the peer of `make bench PEER=containerd`, which builds it: ENGINE=native, or PARTS=dense on Docker, as it
# has an engine of its own and only what is asked of a node can be compared, not what goes through Docker.
set -eu
cat >"$PEER_DIR/config.toml" <<END
version = 2
root = "$PEER_DIR/root"
state = "$PEER_DIR/state"
[grpc]
  address = "$PEER_SOCKET"
[ttrpc]
  address = "$PEER_DIR/ttrpc.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$PEER_DIR/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$PAUSE_IMAGE"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$CNI_BIN_DIR"
    conf_dir = "$CNI_CONF_DIR"
END
exec "$CONTAINERD" --config "$PEER_DIR/config.toml"
