#!/bin/sh
# demo-cluster.sh [docker|native]: `make demo-cluster`. A Kubernetes cluster of this one machine: crishim on its engine (see
# node.sh), a kubelet and a control plane built from their modules, etcd of Debian, and a registry on loopback with one image.
# At a terminal it prints what to try and runs until Ctrl-C; without one it runs a deployment, talks to it, and ends. At its
# end no pod, process or file of the cluster is left.
#
# KEEP=1 runs until it gets SIGTERM without a terminal too.
set -eu
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "make demo-cluster needs root: containers, namespaces and pod networks are made" >&2; exit 1; }
version=v1.37.2
cache=$PWD/.cache/e2e
. hack/node.sh

demo=$state/cluster logs=/var/log/crishim-demo
registry_pid= plane_pid= kubelet_pid= saved=

finish() {
	status=$?
	trap - EXIT
	trap '' INT TERM
	# A shell of its own: what ends there must not end this one, which has daemons to end.
	[ -z "$kubelet_pid" ] || [ -z "$plane_pid" ] || (remove_pods) || { echo "pods are left: see $logs/kubelet.log" >&2; status=1; }
	for pid in $kubelet_pid $plane_pid $registry_pid; do
		kill "$pid" 2>/dev/null || continue
		wait "$pid" 2>/dev/null || :
	done
	end_node
	for setting in $saved; do echo "${setting#*=}" >"/proc/sys/${setting%%=*}" 2>/dev/null || :; done
	for folder in /sys/fs/cgroup/*/kubepods /sys/fs/cgroup/kubepods; do
		[ ! -d "$folder" ] || find "$folder" -depth -type d -exec rmdir {} + 2>/dev/null || { echo "cgroups are left: $folder" >&2; status=1; }
	done
	# A pod that is left may have a folder of this machine mounted there.
	if mounts_below "$demo" | sort -r | xargs -r umount; then rm -rf "$demo"; else echo "mounts are left below $demo, so it stays" >&2; status=1; fi
	exit $status
}
trap finish EXIT
trap 'exit 130' INT TERM

mounts_below() { sed -n "s|^\([^ ]* \)\{4\}\($1/[^ ]*\) .*|\2|p" /proc/self/mountinfo; }

kubectl() { KUBECONFIG=$demo/admin.kubeconfig KUBECACHEDIR=$demo/cache "$cache/kube-$version" kubectl "$@"; }

# remove_pods ends all pods while there is a kubelet that frees what they have; it removes them once a minute.
remove_pods() {
	echo "removing the pods, which takes up to two minutes; logs stay in $logs"
	kubectl delete deployments,statefulsets,daemonsets,jobs,pods --all --all-namespaces --timeout=1m >/dev/null || return
	wait_for 120 "the end of the pods" "$kubelet_pid" "$logs/kubelet.log" no_pods
}

no_pods() { [ "$(find /var/log/pods -mindepth 1 -maxdepth 1 -type d -newer "$demo/began" 2>/dev/null | wc -l)" = 0 ]; }

# build NAME FOLDER: a program of Kubernetes, from its module.
build() {
	[ -x "$cache/$1-$version" ] || echo "building $1 $version from its module, once, which takes minutes"
	mkdir -p "$cache"
	(cd "$2" && go build -trimpath -buildvcs=false -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$version" -o "$cache/$1-$version" .)
}

# get_etcd unpacks Debian's package, which installed would run as a service.
get_etcd() {
	etcd=$(command -v etcd) && return
	etcd=$cache/etcd/usr/bin/etcd
	[ ! -x "$etcd" ] || return 0
	mkdir -p "$cache/etcd"
	(cd "$cache/etcd" && apt-get download etcd-server >/dev/null && dpkg-deb -x etcd-server_*.deb . && rm etcd-server_*.deb)
}

# busybox that looks applets up on PATH, as the image wants it
get_busybox() {
	busybox=$cache/busybox/bin/busybox
	for file in "$busybox" "$cache/busybox/usr/bin/busybox" /bin/busybox; do
		if [ -x "$file" ]; then busybox=$file; return; fi
	done
	mkdir -p "$cache/busybox"
	(cd "$cache/busybox" && apt-get download busybox >/dev/null && dpkg-deb -x busybox_*.deb . && rm busybox_*.deb)
	[ -x "$busybox" ] || busybox=$cache/busybox/usr/bin/busybox
}

kubelet_config() {
	cat <<-CONFIG
		apiVersion: kubelet.config.k8s.io/v1beta1
		kind: KubeletConfiguration
		containerRuntimeEndpoint: $socket
		address: $address
		healthzPort: 0
		authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
		authorization: {mode: AlwaysAllow}
		enforceNodeAllocatable: []
		failCgroupV1: false
		failSwapOn: false
		oomScoreAdj: 0
		makeIPTablesUtilChains: false
		evictionHard: {memory.available: 0%, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%}
		imageGCHighThresholdPercent: 100
		featureGates: {PodAndContainerStatsFromCRI: true}
		volumePluginDir: $demo/volume-plugins
	CONFIG
}

node_ready() { kubectl get node demo 2>/dev/null | grep -q ' Ready ' && kubectl get serviceaccount default >/dev/null 2>&1; }

# start_cluster: the control plane serves on the pod network's own address, which no loopback one may be.
start_cluster() {
	address=$(ip -4 -o addr show crishim0 2>/dev/null | sed -n 's|.* inet \([0-9.]*\)/.*|\1|p')
	[ -n "$address" ] || address=$(hostname -I | cut -d' ' -f1)
	rm -rf "$demo"
	mkdir -p "$demo" "$logs"
	touch "$demo/began"
	setsid .cache/demoregistry 127.0.0.1:0 "$busybox" >"$demo/image" 2>"$logs/registry.log" &
	registry_pid=$!
	setsid "$cache/kube-$version" up -dir "$demo" -logs "$logs" -address "$address" -node demo -pod-cidr 10.222.0.0/24 -etcd "$etcd" >"$demo/up.log" 2>&1 &
	plane_pid=$!
	wait_for 120 "the control plane" $plane_pid "$demo/up.log" grep -qx ready "$demo/up.log"
	for name in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
		[ ! -r /proc/sys/$name ] || saved="$saved $name=$(cat /proc/sys/$name)"
	done
	kubelet_config >"$demo/kubelet.yaml"
	setsid "$cache/kubelet-$version" --config "$demo/kubelet.yaml" --kubeconfig "$demo/kubelet.kubeconfig" --root-dir "$demo/kubelet" --cert-dir "$demo/kubelet-certificates" \
		--hostname-override demo --node-ip "$address" >"$logs/kubelet.log" 2>&1 &
	kubelet_pid=$!
	wait_for 90 "the node" $kubelet_pid "$logs/kubelet.log" node_ready
	image=$(cat "$demo/image")
}

# show runs what it tells people to try.
show() {
	kubectl get nodes -o wide
	kubectl create deployment web --image="$image" --replicas=2 -- sh -c 'hostname >/tmp/index.html; exec httpd -f -v -p 80 -h /tmp'
	kubectl rollout status deployment/web --timeout=2m
	kubectl get pods -o wide
	answer=$(kubectl exec deployment/web -- wget -qO- http://127.0.0.1/)
	kubectl get pod "$answer" >/dev/null || { echo "the deployment answers with $answer, which is no pod's name" >&2; exit 1; }
	echo "pod $answer answers"
}

build kubelet e2e/kubelet
build kube e2e/cluster
CGO_ENABLED=0 go build -trimpath -buildvcs=false -o .cache/demoregistry ./e2e/demoregistry
get_etcd
get_busybox
start_node "${1:-}"
start_cluster
show
[ -n "${KEEP:-}" ] || { [ -t 0 ] && [ -t 1 ]; } || exit 0
cat <<TRY

The cluster is up, its logs are in $logs. In another terminal, as root:

  export KUBECONFIG=$demo/admin.kubeconfig
  alias kubectl='$cache/kube-$version kubectl'
  kubectl get pods -A -o wide
  kubectl run -it --rm shell --image=$image
  kubectl exec -it deployment/web -- sh
  kubectl logs -f deployment/web
  kubectl port-forward deployment/web 8080:80
  kubectl debug -it "\$(kubectl get pods -l app=web -o name | head -n 1)" --image=$image
  kubectl set env deployment/web GREETING=hello
  kubectl delete deployment web

Images come from $image and, where this machine reaches them, from any registry. Ctrl-C takes it all down.
TRY
wait $plane_pid
