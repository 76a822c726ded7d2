// SPDX-License-Identifier: Apache-2.0

package nodeimage

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"text/template"

	"github.com/google/go-cmp/cmp"
)

func TestContainerdConfig(t *testing.T) {
	t.Parallel()
	const base = `# explicitly use v2 config format
version = 2
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.10"
  # restrict_oom_score_adj needs to be true when running inside UserNS (rootless)
  restrict_oom_score_adj = false
`
	const want = `# explicitly use v2 config format
version = 2
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.10"
  # restrict_oom_score_adj needs to be true when running inside UserNS (rootless)
  restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "/etc/containerd/certs.d"

[plugins."io.containerd.grpc.v1.cri".cni]
  conf_template = "/etc/containerd/cni.conflist.tmpl"

[plugins."io.containerd.cri.v1.runtime"]
  stats_collect_period = "1m"
`
	got, err := containerdConfig([]byte(base))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}

	for name, tc := range map[string]struct{ base, message string }{
		"other version": {strings.Replace(base, "version = 2", "version = 3", 1), "not of version 2"},
		"no such key":   {strings.Replace(base, "  restrict_oom_score_adj = false\n", "", 1), "set 0 times"},
		"table exists":  {base + "[plugins.\"io.containerd.grpc.v1.cri\".registry]\n", "has a table [plugins."},
		"done before":   {want, "has a table [plugins."},
	} {
		if _, err := containerdConfig([]byte(tc.base)); err == nil || !strings.Contains(err.Error(), tc.message) {
			t.Errorf("%s: error %v, want one with %q", name, err, tc.message)
		}
	}
}

// The configuration that is really changed is kind's, and it moves with kind's version.
func TestContainerdConfigOfKind(t *testing.T) {
	t.Parallel()
	dir, err := runGo(t.Context(), "../../..", "list", "-m", "-f", "{{.Dir}}", kindModule)
	if err != nil || dir == "" {
		t.Skipf("the module %s is not in the module cache: %v", kindModule, err)
	}
	name := filepath.Join(dir, "images", "base", "files", containerdConfigPath)
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := containerdConfig(content); err != nil {
		t.Error(err)
	}
	image, err := sandboxImage(name)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(image, "registry.k8s.io/pause:") {
		t.Errorf("sandbox image %q, want a pause", image)
	}
}

// containerd renders the CNI configuration with the fields of its own type of this form.
func TestCNITemplate(t *testing.T) {
	t.Parallel()
	parsed, err := template.ParseFiles("../../../" + overlayDir + "/etc/containerd/cni.conflist.tmpl")
	if err != nil {
		t.Fatal(err)
	}
	for _, ranges := range [][]string{{"10.244.1.0/24"}, {"10.244.1.0/24", "fd00:10:244:1::/64"}} {
		var rendered strings.Builder
		data := struct{ PodCIDRRanges, Routes []string }{ranges, []string{"0.0.0.0/0", "::/0"}[:len(ranges)]}
		if err := parsed.Execute(&rendered, data); err != nil {
			t.Fatal(err)
		}
		var config struct {
			Plugins []struct {
				Type string
				IPAM struct {
					Ranges [][]struct{ Subnet string }
					Routes []struct{ Dst string }
				}
			}
		}
		if err := json.Unmarshal([]byte(rendered.String()), &config); err != nil {
			t.Fatalf("%v\n%s", err, rendered.String())
		}
		if len(config.Plugins) != 2 || config.Plugins[0].Type != "ptp" {
			t.Fatalf("plugins: %+v", config.Plugins)
		}
		var subnets, routes []string
		for _, r := range config.Plugins[0].IPAM.Ranges {
			for _, s := range r {
				subnets = append(subnets, s.Subnet)
			}
		}
		for _, r := range config.Plugins[0].IPAM.Routes {
			routes = append(routes, r.Dst)
		}
		if diff := cmp.Diff(ranges, subnets); diff != "" {
			t.Errorf("subnets (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(data.Routes, routes); diff != "" {
			t.Errorf("routes (-want +got):\n%s", diff)
		}
	}
}
