package registry

import (
	"os"
	"path/filepath"
	"testing"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"
)

func TestExampleShoot(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(filepath.Join("..", "..", "..", "example", "shoot.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var shoot gardencorev1beta1.Shoot
	if err := yaml.UnmarshalStrict(data, &shoot); err != nil {
		t.Fatal(err)
	}
	var upstreams []string
	for i, extension := range shoot.Spec.Extensions {
		if extension.Type != "registry-cache" {
			continue
		}
		config, errs := Decode(extension.ProviderConfig.Raw, field.NewPath("spec", "extensions").Index(i).Child("providerConfig"))
		if len(errs) > 0 {
			t.Fatal(errs)
		}
		for _, cache := range config.Caches {
			upstreams = append(upstreams, cache.Upstream)
		}
	}
	if diff := cmp.Diff([]string{"docker.io", "ghcr.io", "quay.io"}, upstreams); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
