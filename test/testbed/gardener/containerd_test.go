// SPDX-License-Identifier: Apache-2.0

package gardener

import (
	"strings"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/registry-cache/extension/test/testbed/gardenlet"
)

func TestParseContainerd(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, dump string
		want       gardenlet.Containerd
	}{
		{"containerd 1", `version = 2
[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    sandbox_image = "registry.k8s.io/pause:3.8"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = true
`, gardenlet.Containerd{SandboxImage: "registry.k8s.io/pause:3.8", CgroupDriver: "systemd"}},
		{"containerd 2", `version = 4
[plugins]
  [plugins.'io.containerd.cri.v1.images']
    [plugins.'io.containerd.cri.v1.images'.pinned_images]
      sandbox = 'registry.k8s.io/pause:3.10'
  [plugins.'io.containerd.cri.v1.runtime']
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      SystemdCgroup = true
`, gardenlet.Containerd{SandboxImage: "registry.k8s.io/pause:3.10", CgroupDriver: "systemd"}},
		{"without systemd", `[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = 'pause'
`, gardenlet.Containerd{SandboxImage: "pause", CgroupDriver: "cgroupfs"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := parseContainerd(tc.dump)
			if err != nil {
				t.Fatal(err)
			}
			if got != tc.want {
				t.Errorf("settings are %+v, want %+v", got, tc.want)
			}
		})
	}
	for dump, want := range map[string]string{"version = 3\n": "has no sandbox image", "= no": "decoding its configuration"} {
		if _, err := parseContainerd(dump); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error for %q is %v, want it to contain %s", dump, err, want)
		}
	}
}

func TestInClusterKubeconfig(t *testing.T) {
	t.Parallel()
	config := &rest.Config{Host: "https://127.0.0.1:36000", TLSClientConfig: rest.TLSClientConfig{CAData: []byte("ca"), CertData: []byte("cert"), KeyData: []byte("key")}}
	content, err := inClusterKubeconfig(config)
	if err != nil {
		t.Fatal(err)
	}
	got, err := clientcmd.RESTConfigFromKubeConfig(content)
	if err != nil {
		t.Fatal(err)
	}
	if got.Host != "https://kubernetes.default.svc" || string(got.CAData) != "ca" || string(got.CertData) != "cert" || string(got.KeyData) != "key" {
		t.Errorf("kubeconfig leads to %+v", got)
	}
	config.CertData = nil
	if _, err := inClusterKubeconfig(config); err == nil {
		t.Error("a kubeconfig without credentials was made")
	}
}
