# node.sh: what `make run` and `make demo-cluster` share, for them to source from the checkout's root: start_node makes this machine a
# node, with its engine, a pod network and crishim, and end_node ends what was started here.
#
# The engine is a Docker Engine if one answers, else the native one; `docker` starts one if none answers. DOCKER_HOST
# (unix:///PATH) names another Docker Engine; CRISHIM_FLAGS are further flags of crishim serve.
PATH=$PATH:/usr/sbin:/sbin

state=/run/crishim-run
docker_socket=${DOCKER_HOST:-unix:///var/run/docker.sock}
docker_pid= shim_pid= bridges=
pods_stay= # set where pods may outlive the script
# Daemons are started by setsid: Ctrl-C is for the script, which ends them in their order once they are not needed.
mkdir -p $state

end_node() {
	for pid in $shim_pid $docker_pid; do
		kill "$pid" 2>/dev/null || continue
		wait "$pid" 2>/dev/null || :
	done
	for bridge in $bridges; do ip link del "$bridge" 2>/dev/null || :; done
}

docker_answers() {
	[ -S "${docker_socket#unix://}" ] && bin/crishim-ping "${docker_socket#unix://}" 2>/dev/null
}

# wait_for SECONDS WHAT PID LOG COMMAND...: polls, and shows the log of a daemon that does not come up.
wait_for() {
	seconds=$1 what=$2 pid=$3 log=$4
	shift 4
	tries=$((seconds * 5))
	while ! "$@" >/dev/null 2>&1; do
		tries=$((tries - 1))
		if [ $tries -le 0 ] || ! kill -0 "$pid" 2>/dev/null; then
			tail -30 "$log" >&2
			echo "waited for $what in vain: see $log" >&2
			exit 1
		fi
		sleep 0.2
	done
}

start_docker() {
	if [ -d /run/systemd/system ]; then
		systemctl start docker
		return
	fi
	# No service manager: by hand. Pods have the network of CNI, so the engine's own bridge and NAT rules stay out of the way.
	bridge=crishim-dk0
	bridges=$bridge
	ip link show $bridge >/dev/null 2>&1 || ip link add $bridge type bridge
	ip addr replace 198.19.255.1/30 dev $bridge
	ip link set $bridge up
	docker_socket=unix://$state/docker.sock
	set -- --host "$docker_socket" --pidfile $state/docker.pid --exec-root $state/docker --config-file $state/daemon.json \
		--bridge $bridge --iptables=false --ip6tables=false --exec-opt native.cgroupdriver=cgroupfs
	echo '{}' >$state/daemon.json
	# bit 24 is CAP_SYS_RESOURCE: without it no container can have the kubelet's scores of the OOM killer
	if [ $((0x$(sed -n 's/^CapEff:\s*//p' /proc/self/status) >> 24 & 1)) = 0 ]; then
		CGO_ENABLED=0 go build -trimpath -buildvcs=false -o .cache/ociwrap ./e2e/ociwrap
		set -- "$@" --add-runtime "wrapped=$PWD/.cache/ociwrap" --default-runtime wrapped
	fi
	setsid dockerd "$@" >$state/dockerd.log 2>&1 &
	docker_pid=$!
	wait_for 60 dockerd $docker_pid $state/dockerd.log docker_answers
}

# A pod network: the plugins of the distribution or of /opt/cni/bin, else ours, and a configuration where there is none.
make_network() {
	if ! [ -x /opt/cni/bin/bridge ] && ! [ -x /usr/lib/cni/bridge ]; then
		echo "building the CNI plugins into /opt/cni/bin"
		mkdir -p /opt/cni/bin
		(cd e2e/tools/cni && CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o /opt/cni/bin/ tool)
	fi
	mkdir -p /etc/cni/net.d
	for file in /etc/cni/net.d/*.conf /etc/cni/net.d/*.conflist /etc/cni/net.d/*.json; do
		[ ! -e "$file" ] || return 0
	done
	cp packaging/10-crishim.conflist /etc/cni/net.d/
	# Where no pod outlives this script, nothing else uses this network yet.
	[ -n "$pods_stay" ] || bridges="$bridges crishim0"
	echo "made a default pod network: /etc/cni/net.d/10-crishim.conflist"
}

# start_node [docker|native]: its engine, network and crishim, shown by `crishim check`.
start_node() {
	go build -o bin/crishim-ping ./hack/ping
	engine=${1:-}
	if [ -n "$engine" ]; then
		why="it was asked for"
	elif docker_answers; then
		engine=docker why="a Docker Engine answers on $docker_socket"
	else
		engine=native why="no Docker Engine answers on $docker_socket"
	fi
	echo "engine: $engine, because $why"
	hack/packages.sh run "$engine"
	[ "$engine" = native ] || docker_answers || start_docker
	make_network

	socket=unix:///run/crishim/crishim.sock
	# shellcheck disable=SC2086 # flags are words
	setsid bin/crishim serve --engine "$engine" --docker-endpoint "$docker_socket" ${CRISHIM_FLAGS:-} >$state/crishim.log 2>&1 &
	shim_pid=$!
	# The file alone may be what one that was killed has left.
	wait_for 60 crishim $shim_pid $state/crishim.log grep -q ' /run/crishim/crishim.sock$' /proc/net/unix
	bin/crishim check --endpoint $socket || { tail -30 $state/crishim.log >&2; exit 1; }
	# Another one that was there has answered, where this one has ended.
	kill -0 $shim_pid 2>/dev/null || { tail -30 $state/crishim.log >&2; exit 1; }
}
