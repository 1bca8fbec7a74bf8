"""Every door of the web process."""

from django.contrib import admin
from django.urls import include, path, re_path
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularAPIView

from fleetsync.health import healthz, readyz
from fleetsync.metrics import metrics
from repos.api.errors import not_found

admin.site.site_header = admin.site.site_title = "fleetsync"
admin.site.index_title = "Git repositories and clusters"

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
    path("api/schema/", SpectacularAPIView.as_view(), name="schema"),
    path("api/v1/", include("repos.api.urls")),
    path("healthz", healthz),
    path("readyz", readyz),
    path("metrics", metrics),
    # The last one: it takes whatever is left below /api/.
    re_path("^api/", not_found),
]
