// SPDX-License-Identifier: Apache-2.0

package product

import (
	"path/filepath"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	chartutil "helm.sh/helm/v4/pkg/chart/v2/util"
	"helm.sh/helm/v4/pkg/engine"
)

// Values that a chart does not know are ignored by Helm; the testbed would run published images then.
func TestTheChartsTakeTheValues(t *testing.T) {
	t.Parallel()
	images := map[string]image{
		controllerImage: {repository: "example.com/controller", tag: "c1"},
		cacheImage:      {repository: "example.com/cache", tag: "s1"},
		stockImage:      {repository: "example.com/stock", tag: "d1"},
	}
	wanted := map[string][]string{
		Release:   {"example.com/controller:c1", "repository: example.com/cache", `tag: "s1"`, "repository: example.com/stock", `tag: "d1"`, "engine: distribution", "BEGIN CERTIFICATE"},
		Admission: {"example.com/controller:c1"},
	}
	for _, chart := range charts(images, Options{Engine: Distribution, CABundle: []byte("-----BEGIN CERTIFICATE-----\nroots\n-----END CERTIFICATE-----\n")}) {
		loaded, err := loader.LoadDir(filepath.Join("..", "..", "..", "charts", chart.name))
		if err != nil {
			t.Fatal(err)
		}
		if err := chartutil.ProcessDependencies(loaded, chart.values); err != nil {
			t.Fatal(err)
		}
		all, err := util.ToRenderValues(loaded, chart.values, common.ReleaseOptions{Name: chart.name, Namespace: Namespace}, nil)
		if err != nil {
			t.Fatal(err)
		}
		files, err := engine.Render(loaded, all)
		if err != nil {
			t.Fatal(err)
		}
		var rendered strings.Builder
		for _, content := range files {
			rendered.WriteString(content)
		}
		for _, want := range wanted[chart.name] {
			if !strings.Contains(rendered.String(), want) {
				t.Errorf("the rendered chart %s does not contain %q", chart.name, want)
			}
		}
		delete(wanted, chart.name)
	}
	if len(wanted) > 0 {
		t.Errorf("not installed: %v", wanted)
	}
}

func TestParseImages(t *testing.T) {
	t.Parallel()
	const good = "ghcr.io/registry-cache/gardener-extension-registry-cache:abc /tmp/a.tar\nghcr.io/registry-cache/registry-cache:def /tmp/b.tar\n"
	images, err := parseImages(good, []string{controllerImage, cacheImage})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := images[cacheImage], (image{"ghcr.io/registry-cache/registry-cache", "def", "/tmp/b.tar"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for _, bad := range []string{"", "no-tag /tmp/a.tar\n", "ghcr.io/registry-cache/registry-cache:def\n", "ghcr.io/registry-cache/registry-cache:def /tmp/b.tar\n"} {
		if _, err := parseImages(bad, []string{controllerImage, cacheImage}); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
	if _, err := parseImages(good, []string{controllerImage, cacheImage, stockImage}); err == nil {
		t.Error("no error without the image of the engine that was asked for")
	}
}
